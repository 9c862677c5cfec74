"""Write the pages of commands: the help of every command, and the output of examples that it runs on the Earth.

Run it after a command changed: ``make docs-commands``. The examples run one after another in a new folder with the
images, labels and teacher of ``maskmill demo``; a test compares the help on the pages with the commands. With the
argument ``help``, only the help on the pages is renewed, which takes seconds.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from typer.testing import CliRunner

from maskmill.cli import app

DOCS = Path(__file__).resolve().parent
PAGES = DOCS / "commands"
WIDTH = 80
MOST_LINES = 40
"""Lines of an output that are shown."""
HOME = "/home/you/earth"
"""Name of the folder on the pages."""

# fmt: off
PANELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "Models": ("A bundle is a folder with a model's ONNX file and everything needed to run it.", (
        "import", "export", "cam-head", "rescale", "convert", "gate", "build", "bench", "tune",
    )),
    "Calibration": ("Map classes, compute thresholds from labeled images, choose how to select pixels.", (
        "taxonomy", "choose", "calibrate", "calibrate-objects",
    )),
    "Labels": ("Label a corpus, and manage label stores.", (
        "label", "label-prompted", "segment", "reselect", "merge", "verify", "status",
    )),
    "Looking": ("Inspect and measure labels.", ("show", "report", "serve", "rank", "evaluate")),
    "Exchange": ("Export labels to other tools, import corrections.", ("export-labels", "import-labels", "manifest")),
    "Students": ("Train a small network on the labels.", ("train", "predict")),
    "Setup": ("What is installed, and a first run.", ("doctor", "demo")),
}
EXAMPLES: dict[str, Sequence[str]] = {
    "demo": ("maskmill demo --no-student",),
    "import": ("maskmill import teacher.onnx -o teacher --classes classes.txt --scale 1/255 --preview photos/000.png",),
    "taxonomy": ("maskmill taxonomy teacher -o drafted.toml",),
    "choose": (("maskmill choose teacher --images labeled/images --labels labeled/labels --taxonomy classes.toml "
               "--goal 'kept 0.8'"),),
    "calibrate": (("maskmill calibrate teacher --images labeled/images --labels labeled/labels --taxonomy classes.toml "
                  "--alpha 0.1 -o calibration.json"),),
    "label": (
        "maskmill label teacher photos/ --taxonomy classes.toml --dry-run",
        ("maskmill label teacher photos/ -o labels --taxonomy classes.toml --select conformal "
        "--calibration calibration.json --weight pcos --keep-scores 0.05"),
        ("maskmill label teacher photos/ -o labels --taxonomy classes.toml --select conformal "
        "--calibration calibration.json --weight pcos --keep-scores 0.05"),
    ),
    "reselect": ("maskmill reselect labels -o labels-20 --alpha 0.2",),
    "verify": ("maskmill verify labels",),
    "status": ("maskmill status labels",),
    "show": ("maskmill show labels",),
    "report": ("maskmill report labels --labels truth -o report.html",),
    "rank": ("maskmill rank labels --budget 5 -o queue.json",),
    "evaluate": (
        "maskmill evaluate labels --labels truth",
        "maskmill evaluate teacher --images photos --labels truth --taxonomy classes.toml",
    ),
    "export-labels": ("maskmill export-labels labels --format coco -o coco",),
    "import-labels": ("maskmill import-labels labels coco --reviewer ana",),
    "manifest": ("maskmill manifest photos/ -o photos.parquet",),
    "merge": ("maskmill merge labels -o merged",),
    "convert": ("maskmill convert teacher --precision fp16 --images photos/ --on-fail next",),
    "gate": ("maskmill gate teacher --images photos/ --provider openvino",),
    "bench": ("maskmill bench teacher --images photos/",),
    "tune": ("maskmill tune teacher --images photos/",),
    "train": (("maskmill train labels --labeled labeled --recipe weighted --set model=tiny --set steps=60 "
              "--set crop=64 --set batch=8 --device cpu -o run"),),
    "predict": ("maskmill predict run photos/000.png -o predicted.png",),
    "export": ("maskmill export run -o student",),
    "doctor": ("maskmill doctor",),
}
NOTES = {
    "build": "It needs an NVIDIA GPU and TensorRT; see [TensorRT](../tensorrt.md).",
    "calibrate-objects": "An example is in [objects](../instances.md).",
    "cam-head": "An example is in [labels from image-level classes](../prompted.md).",
    "rescale": "An example is in [students](../students.md#our-recipe-rescale-the-teacher-then-use-all-its-labels).",
    "label-prompted": "An example is in [labels from image-level classes](../prompted.md).",
    "segment": "An example is in [labels from image-level classes](../prompted.md).",
    "serve": "It prints an address to open in the browser; see [the report](../report.md).",
}
ORDER = (
    "demo", "doctor", "import", "taxonomy", "choose", "calibrate", "label", "reselect", "verify", "status", "show",
    "report", "rank", "evaluate", "export-labels", "import-labels", "manifest", "merge", "convert", "gate", "bench",
    "tune", "train", "predict", "export",
)
# fmt: on


def main() -> int:
    """Run the examples and write all pages, or only their help."""
    if sys.argv[1:] == ["help"]:
        for path in PAGES.glob("*.md"):
            path.write_text(with_current_help(path.read_text(encoding="utf-8")), encoding="utf-8")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder).resolve()
        outputs: dict[str, list[str]] = {}
        for command in ORDER:
            if not help_of(command):
                continue
            outputs[command] = []
            for example in EXAMPLES[command]:
                print(f"$ {example}", flush=True)
                text, status = run(example, home)
                if status:
                    print(text)
                    return status
                outputs[command].append(text)
            if command == "demo":
                arrange(home)
    PAGES.mkdir(exist_ok=True)
    for panel, (summary, commands) in PANELS.items():
        parts = [f"# {panel}", "", summary, ""]
        for command in commands:
            if help_of(command):
                parts += section(command, outputs.get(command, []))
        (PAGES / f"{panel.lower()}.md").write_text("\n".join(parts), encoding="utf-8")
    return 0


def arrange(home: Path) -> None:
    """Move what the demonstration made to the names of the examples."""
    earth = home / "demo-output" / "earth"
    (home / "labeled").mkdir()
    for source, target in (
        ("teacher.onnx", "teacher.onnx"),
        ("taxonomy.toml", "classes.toml"),
        ("calibration/images", "labeled/images"),
        ("calibration/labels", "labeled/labels"),
        ("scored/images", "photos"),
        ("scored/labels", "truth"),
    ):
        shutil.move(earth / source, home / target)
    names = re.findall(r'^"?(\w+)"? *= *"', (home / "classes.toml").read_text().split("[model]")[1].split("[")[0], re.M)
    (home / "classes.txt").write_text("\n".join(names) + "\n")
    first = sorted((home / "photos").iterdir())[0]
    for folder, source in (("photos", first), ("truth", next((home / "truth").glob(f"{first.stem}.*")))):
        source.rename(home / folder / f"000{source.suffix}")


def run(example: str, home: Path) -> tuple[str, int]:
    """Run a command line in the folder; return its output as on a terminal of 80 columns, and its exit status."""
    command = [sys.executable, "-m", "maskmill", *shlex.split(example)[1:]]
    environment = {**os.environ, "COLUMNS": str(WIDTH), "PYTHONWARNINGS": "ignore", "NO_COLOR": "1"}
    result = subprocess.run(
        command, cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return shown(result.stdout, home), result.returncode


def shown(text: str, home: Path) -> str:
    """Name the folder as on the pages, and cut a long output."""
    text = text.replace(str(home), HOME).replace(sys.prefix, "/home/you/maskmill/.venv")
    text = text.replace(str(DOCS.parent), "/home/you/maskmill")
    lines = [line.rpartition("\r")[2].rstrip() for line in text.rstrip().splitlines()]
    return "\n".join([*lines[:MOST_LINES], "…"] if len(lines) > MOST_LINES else lines)


def help_of(command: str) -> str:
    """Return the help of a command; empty if there is no such command."""
    environment = {"COLUMNS": str(WIDTH), "TERMINAL_WIDTH": str(WIDTH)}
    result = CliRunner().invoke(app, [command, "--help"], env=environment, prog_name="maskmill")
    return "" if result.exit_code else "\n".join(line.rstrip() for line in result.output.strip("\n").splitlines())


def section(command: str, outputs: Sequence[str]) -> list[str]:
    """Write the section of one command."""
    lines = [f"## maskmill {command}", ""]
    if command in NOTES:
        lines += [NOTES[command], ""]
    for example, output in zip(EXAMPLES.get(command, ()), outputs, strict=True):
        lines += ["```console", f"$ {example}", output, "```", ""]
    return [*lines, *help_block(command), ""]


def help_block(command: str) -> list[str]:
    """Write the help of a command, folded."""
    return ['??? info "All options"', "", "    ```text", *indented(help_of(command)), "    ```"]


def with_current_help(page: str) -> str:
    """Replace the help of every command on a page."""
    block = re.compile(r'^\?\?\? info "All options"\n.*?^    ```$', re.MULTILINE | re.DOTALL)
    sections = re.split(r"(?m)^(?=## maskmill )", page)
    for index, text in enumerate(sections[1:], start=1):
        help_lines = "\n".join(help_block(text.split()[2]))
        sections[index] = block.sub(lambda _, lines=help_lines: lines, text)
    return "".join(sections)


def indented(text: str) -> list[str]:
    """Indent the lines of a block, empty ones excepted."""
    return [f"    {line}" if line else "" for line in text.splitlines()]


if __name__ == "__main__":
    sys.exit(main())
