"""The language part of a model of text and images, taken out and put back by docs/families.md."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from helpers.tiny import CONFIGS, letters_tokenizer, tokens
from pgprune import PruningError
from pgprune.masking.units import PruningUnits
from pgprune.models.load import ModelConfig, check_model, load_model
from pgprune.surgery.layers import prune

DOCS = Path(__file__).resolve().parents[2] / "docs" / "families.md"
SIGHT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def run_code(block: int, **names: str) -> None:
    """Runs a block of Python of the page, with directories in place of its names."""
    code = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)[block]
    for name, path in names.items():
        assert f'"{name}"' in code
        code = code.replace(f'"{name}"', repr(path))
    exec(code, {})


@pytest.mark.parametrize(
    ("kind", "text", "sight"),
    [
        ("llava", "llama", "clip_vision_model"),
        ("gemma3", "gemma3_text", "siglip_vision_model"),
        ("mistral3", "mistral", "pixtral"),
    ],
)
@torch.no_grad()
def test_out_pruned_and_back(kind, text, sight, tmp_path):
    texts = CONFIGS[text].to_dict()
    config = AutoConfig.for_model(
        kind, text_config=texts, vision_config=SIGHT | {"model_type": sight}
    )
    torch.manual_seed(0)
    whole = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    whole.save_pretrained(tmp_path / "whole")
    letters_tokenizer().save_pretrained(tmp_path / "whole")
    with pytest.raises(PruningError, match=f"the family '{text}', can be .* docs/families.md"):
        check_model(ModelConfig(str(tmp_path / "whole")))

    places = {name: str(tmp_path / name) for name in ("whole", "language", "pruned", "smaller")}
    run_code(0, whole=places["whole"], language=places["language"])
    language, _ = load_model(ModelConfig(places["language"]))
    assert torch.equal(language(tokens()).logits, whole(input_ids=tokens()).logits)

    units = PruningUnits.of(language, "channels")
    mask = (torch.arange(units.n) % 3 != 1).byte()  # as many channels in each layer
    prune(language, units, mask).save_pretrained(places["pruned"])
    run_code(1, **{name: places[name] for name in ("whole", "pruned", "smaller")})
    smaller = AutoModelForImageTextToText.from_pretrained(places["smaller"])
    pruned = AutoModelForCausalLM.from_pretrained(places["pruned"])
    assert torch.equal(smaller(input_ids=tokens()).logits, pruned(tokens()).logits)
    before, after = whole.model.vision_tower, smaller.model.vision_tower
    assert all(map(torch.equal, before.parameters(), after.parameters()))
