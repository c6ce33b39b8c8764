"""Write a report of one or several runs as one HTML file that needs no network.

python -m tools.report_html --run lenet5/seed1 --to report.html
python -m tools.report_html --dataset_config cifar100 --run 'lenet5/seed{seed}' --run mine --to report.html
python -m tools.report_html --run spg/cifar100_10 --to spg.html --figures figures
"""

from utils import errors

if __name__ == "__main__":
    errors.end_on_interrupt()

import argparse
from collections.abc import Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

from pipeline import flags
from utils.errors import UserError

EXTRA = ("altair", "jinja2", "vl_convert")


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    flags.add_files(parser, several_runs=True)
    flags.add_seeds(parser)
    parser.add_argument(
        "--to",
        type=Path,
        help="HTML file to write (default: report_<table>.html in the logs of the first run).",
    )
    parser.add_argument(
        "--figures", type=Path, metavar="DIR", help="Also write every chart as SVG and PDF into this folder."
    )
    args = parser.parse_args(argv)
    lacking = [name for name in EXTRA if find_spec(name) is None]
    if lacking:
        raise UserError(
            f"the report needs {', '.join(lacking)}: run `.venv/bin/python -m pip install '.[report]'`, or "
            "with PYTHON set, that interpreter"
        )
    # Needs the extra.
    from reports import build, page

    report = build.build(args, now=datetime.now())
    text = page.html(report)
    output = args.to or report.folder / f"report_{report.table}.html"
    page.write(output, text)
    print(f"Report: {output} ({len(text.encode()) / 1e6:.1f} MB, {len(report.figures)} figures)")
    for problem in report.problems:
        print(f"{problem.run}: {problem.text}")
    if args.figures:
        count = page.write_figures(report, args.figures)
        print(f"Figures: {count} as SVG and PDF in {args.figures}")


if __name__ == "__main__":
    errors.run(main)
