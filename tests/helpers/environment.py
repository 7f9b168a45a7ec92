"""Virtual environments that have the packages of ours, but not pgprune."""

import os
import subprocess
import sys
import venv
from pathlib import Path


class Environment:
    """A new virtual environment that has the packages of ours, but not pgprune.

    Their folders are added by a .pth file; the .pth files in them, which make an editable install
    importable, are not read then.
    """

    def __init__(self, folder: Path) -> None:
        venv.create(folder / "venv", symlinks=os.name == "posix")
        self.binary = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
        self.variables = {key: text for key, text in os.environ.items() if key != "PYTHONPATH"}
        self.variables |= {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
        self.folder = folder
        own = self.run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout
        self.packages = Path(own.strip())
        ours = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        (self.packages / "ours.pth").write_text("\n".join(ours))

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        command = [str(self.binary), *map(str, words)]
        return subprocess.run(
            command, capture_output=True, text=True, env=self.variables, cwd=self.folder
        )
