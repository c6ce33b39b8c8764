"""Decode raw images and tokenise raw texts into the cache: `python -m data.prepare cifar100 [--source PATH]`.

TABLE is the name of a table, or the path of a .toml file that defines one. Without --source, the raw files
are looked for in the data folder and, for tables that can be downloaded, downloaded there. A table that does
not list its tasks or classes takes them from the folders there, or in --source. Running the command again
redoes only what is missing or out of date.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from data.fill import fill_cache
from data.tables import known_tables, load_table
from data.text_encoders import HASH, download_encoder
from utils import logs
from utils.errors import run
from utils.paths import default_root


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data.prepare",
        description=__doc__,
        epilog=f"Tables: {', '.join(known_tables())}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("table", metavar="TABLE", help="name or .toml file of a table")
    parser.add_argument("--source", type=Path, help="path of the raw files (default: in the data folder)")
    parser.add_argument(
        "--data_root",
        type=Path,
        default=default_root("data"),
        help="data folder; the environment variable DATA_ROOT sets it, too (default: %(default)s)",
    )
    parser.add_argument(
        "--text_encoder",
        default=HASH,
        help="encoder that tokenises texts: hash, a model such as bert-base-uncased, or a local folder in "
        "the Hugging Face format (default: %(default)s)",
    )
    parser.add_argument(
        "--download_encoder",
        action="store_true",
        help="download the model that --text_encoder names from huggingface.co (default: no download)",
    )
    args = parser.parse_args(argv)
    logs.to_terminal()
    if args.download_encoder:
        download_encoder(args.text_encoder)

    table = load_table(args.table, data_root=args.data_root, source=args.source)
    fill_cache(table, source=args.source, data_root=args.data_root, text_encoder=args.text_encoder)


if __name__ == "__main__":
    run(main)
