"""The picture of the final screen in the README: runs `make nightly` and draws what it printed.

.venv/bin/python deploy/screen.py deploy/pictures/screen.svg
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

PROJECT_ROOT = Path(__file__).resolve().parent.parent
WIDTH = 110


def main(picture: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "flows.by_hand", "--force"],
        cwd=PROJECT_ROOT,
        env=os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(WIDTH), "TERM": "xterm-256color"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=WIDTH, file=nowhere, force_terminal=True)
        console.print(Text.from_ansi(ended.stdout))
    drawn = console.export_svg(title="make nightly")
    # The drawing would fetch its font from elsewhere; every machine has a monospace one.
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)
    picture.write_text(drawn)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
