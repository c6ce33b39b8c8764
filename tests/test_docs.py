"""The documentation names only what exists: links, scripts, modules, flags and variables."""

import re
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "checkpoints/README.md", "logs/README.md")
    for path in REPOSITORY.glob(pattern)
)
FOLDERS = (
    *("benchmarks", "data", "federation", "methods", "models", "packnet_models", "pipeline"),
    *("reports", "run_pickaback", "tests", "tools", "training", "utils"),
)
# Flags of the published code that the documentation names as rejected.
REJECTED = {"--cuda", "--workers", "--image_size", "--mask_scale"}
# Flags of the bash stages.
STAGE_FLAGS = {"--control", "--detach", "--target", "--help", "--server", "--superlink"}
# Flags of TensorBoard's and MLflow's own commands.
OF_TRACKERS = {"--logdir", "--backend"}
# The beginning of a flag of Flower's commands.
OF_FLOWER = {"--trusted"}
# Flags of Slurm's commands.
OF_SLURM = {
    "--account",
    "--array",
    "--cpus",
    "--gpus",
    "--kill",
    "--mem",
    "--partition",
    "--requeue",
    "--signal",
    "--time",
}
OF_TORCHRUN = {"--nproc_per_node"}
OTHERS = REJECTED | STAGE_FLAGS | OF_TRACKERS | OF_SLURM | OF_TORCHRUN | OF_FLOWER
# Scripts in a synopsis.
PLACEHOLDERS = {"run_pickaback/X.sh", "tools/X.py"}


def text_of(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def anchors_of(page: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    prose = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ +(.+?) *$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def code_of(page: str) -> str:
    """Code blocks and code spans of a page."""
    text = text_of(page)
    blocks = re.findall(r"^```.*?^```", text, flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return "\n".join([*blocks, *re.findall(r"``.+?``|`[^`\n]+`", prose)])


@cache
def sources() -> str:
    """All Python code outside the tests."""
    folders = (*(folder for folder in FOLDERS if folder != "tests"), "")
    files = [
        path for folder in folders for path in (REPOSITORY / folder).glob("**/*.py" if folder else "*.py")
    ]
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


def accepts(flag: str) -> bool:
    """Whether some parser defines a flag: literally, from a table of names, or from a dataclass field."""
    name = flag.removeprefix("--")
    return re.search(rf'"(?:--)?{name}"|^ +{name}: ', sources(), flags=re.MULTILINE) is not None


def test_readme_is_short() -> None:
    assert len(text_of("README.md").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page: str) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", text_of(page))
    broken = []
    for link in links:
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (REPOSITORY / page).parent / path if path else REPOSITORY / page
        missing_anchor = anchor and target.is_file() and anchor not in anchors_of(str(target))
        if not target.exists() or missing_anchor:
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page: str) -> None:
    code = code_of(page)
    scripts = set(re.findall(r"bash ((?:\w+/)*\w+\.sh)", code))
    scripts |= set(re.findall(r"python (\w+\.py)", code))
    scripts |= {
        f"{module.replace('.', '/')}.py"
        for module in re.findall(r"python -m ((?:benchmarks|data|tools)\.\w+)", code)
    }
    assert not [script for script in scripts - PLACEHOLDERS if not (REPOSITORY / script).is_file()]


@pytest.mark.parametrize("page", PAGES)
def test_code_paths_exist(page: str) -> None:
    paths = set(re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w/]+\.(?:py|sh|toml))`", text_of(page)))
    assert not [path for path in paths if not (REPOSITORY / path).is_file()]


@pytest.mark.parametrize("page", PAGES)
def test_flags_exist(page: str) -> None:
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z_]*", code_of(page)))
    unknown = [flag for flag in flags - OTHERS if not accepts(flag)]
    assert not unknown


def test_rejected_flags_are_unknown() -> None:
    assert not [flag for flag in REJECTED if f'"{flag}"' in sources()]


def test_readme_lists_every_variable() -> None:
    config = text_of("run_pickaback/config.sh")
    variables = set(re.findall(r'^: "\$\{(\w+):=', config, flags=re.MULTILINE))
    table = re.search(r"\| what to run \|.*?\n\n", text_of("README.md"), flags=re.DOTALL)
    assert table
    assert set(re.findall(r"`([A-Z_]+)`", table.group())) == variables
