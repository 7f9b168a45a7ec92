"""What each weight is worth to the loss by autograd, added up over units row by row."""

import copy

import torch

from helpers.tiny import inputs_of_unit


def gradients_of(model, windows) -> list[dict[str, torch.Tensor]]:
    """The gradient of the loss of each window, by the parameter's name."""
    plain = copy.deepcopy(model).requires_grad_(True)
    found = []
    for window in windows:
        plain.zero_grad()
        plain(window[None], labels=window[None]).loss.backward()
        found.append({name: p.grad.clone() for name, p in plain.named_parameters()})
    return found


def salience(model, windows, taylor) -> dict[str, torch.Tensor]:
    """What each weight is worth, by the parameter's name; signed for ``vector``."""
    each = gradients_of(model, windows)
    worth = {}
    for name, weight in model.named_parameters():
        first = weight * sum(gradient[name] for gradient in each) / len(each)
        second = weight**2 * sum(gradient[name] ** 2 for gradient in each) / len(each)
        worth[name] = {
            "element-first": first.abs(),
            "element-second": second.abs(),
            "element-mixed": (first - second / 2).abs(),
            "vector": first,
        }[taylor]
    return worth


def naive_scores(model, units, worth) -> torch.Tensor:
    """Adds up rows and columns one by one; a kv head has the query heads g*h to g*h + g - 1."""
    config, scores = model.config, []
    opt = config.model_type == "opt"
    kv_heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    per_group = config.num_attention_heads // kv_heads
    d = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    output = "self_attn.out_proj" if opt else "self_attn.o_proj"
    expand, down = (["fc1"], "fc2") if opt else (["mlp.gate_proj", "mlp.up_proj"], "mlp.down_proj")
    for group in units.groups:
        path = f"model.{'decoder.' if opt else ''}layers.{group.layer}."
        part = {k.removeprefix(path): v for k, v in worth.items() if k.startswith(path)}

        def row(module, index, part=part):
            values = (part.get(f"{module}.{name}") for name in ("weight", "bias"))
            return sum(float(value[index].sum().abs()) for value in values if value is not None)

        def column(module, index, part=part):
            return float(part[f"{module}.weight"][:, index].sum().abs())

        for unit in range(group.stop - group.start):
            if group.kind == "heads":
                own = [row(f"self_attn.{kv}_proj", unit * d + i) for kv in "kv" for i in range(d)]
                for query in range(unit * per_group, (unit + 1) * per_group):
                    own += [row("self_attn.q_proj", query * d + i) for i in range(d)]
                    own += [column(output, query * d + i) for i in range(d)]
            elif group.kind == "values":
                inputs = inputs_of_unit(units, group, unit)
                own = [row("self_attn.v_proj", unit), *(column(output, i) for i in inputs)]
            elif group.kind == "channels":
                block = range(unit * units.channel_block, (unit + 1) * units.channel_block)
                own = [row(module, channel) for module in expand for channel in block]
                own += [column(down, channel) for channel in block]
            else:
                attention = ("self_attn.", "input_layernorm", "self_attn_layer_norm")
                of_attention = {name: name.startswith(attention) for name in part}
                kinds = {"attention": [True], "mlp": [False], "layer": [True, False]}[group.kind]
                own = [float(v.sum()) for name, v in part.items() if of_attention[name] in kinds]
            scores.append(sum(own))
    return torch.tensor(scores, dtype=torch.float64)
