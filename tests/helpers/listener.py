"""A listener that collects what it hears of the progress."""

from pgprune.utils.progress import Phase


class Heard:
    """Collects lines, and the labels of phases, in order and indented by their depth."""

    def __init__(self) -> None:
        self.notes, self.logged, self.labels = list[str](), list[str](), list[str]()
        self.ended = list[tuple[str, bool]]()

    def begin(self, phase: Phase) -> None:
        depth = len(self.labels) - len(self.ended)
        self.labels.append("  " * depth + phase.label)

    def end(self, phase: Phase, completed: bool) -> None:
        self.ended.append((phase.label, completed))

    def note(self, message: str) -> None:
        self.notes.append(message)

    def log(self, message: str) -> None:
        self.logged.append(message)
