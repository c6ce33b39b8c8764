"""Print the table of a federation, who learned from whom, and the bytes that travelled."""

from utils import errors

if __name__ == "__main__":
    errors.end_on_interrupt()

import sys
from collections.abc import Mapping, Sequence

from data.tables import Table, load_table
from federation.state import State
from methods.rules import RULES
from pipeline import flags
from pipeline.fleet import paths_of
from tools.report import Row, in_columns, print_intervals, print_notes, print_table, summary, write_report
from utils.errors import UserError
from utils.tables import aligned


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.parser(__doc__)
    flags.add_files(parser)
    args = parser.parse_args(argv)
    table = load_table(args.dataset_config, data_root=args.data_root)
    paths = paths_of(args)
    path = paths.federation_file(table.name)
    if not path.exists():
        raise UserError(f"{path} not found: run run_pickaback/federated.sh first")
    state = State.read(path)
    rows, columns = rows_of(state, table=table, tasks=args.dataset)
    if rows:
        write_report(paths.report_file(table.name), [rows], columns)
        print_table([rows], columns)
        print_intervals([rows], columns)
        print_notes([args], [rows], columns, table=table)
        for line in summary([rows], table=table, copies=[]):
            sys.stdout.write(f"{line}\n")
    for line in (*told(state, table=table, tasks=args.dataset), "", traffic(state.messages)):
        sys.stdout.write(f"{line}\n")
    sys.stdout.write(f"The same table: {paths.report_file(table.name)}\n")
    entries = {task.name: state.targets.get(task.name, {}) for task in table.select(args.dataset)}
    failed = [name for name, entry in entries.items() if "row" not in entry or "failed" in entry]
    if failed:
        raise UserError(
            f"{len(failed)} targets are not trained: {', '.join(failed)}: run the same command again"
        )


def rows_of(state: State, *, table: Table, tasks: str) -> tuple[list[Row], list[str]]:
    """The rows of the targets that are trained, and their columns, as `tools.report` makes them."""
    rows: list[Row] = []
    for task in table.select(tasks):
        row = state.targets.get(task.name, {}).get("row")
        if row is None:
            continue
        widths = {float(width): accuracy for width, accuracy in row["widths"].items()}
        rows.append({**row, "widths": widths})
    return in_columns(rows, choices=RULES) if rows else ([], [])


def told(state: State, *, table: Table, tasks: str) -> list[str]:
    """One line per target and per device that was passed over."""
    lines = []
    for task in table.select(tasks):
        entry = state.targets.get(task.name, {"failed": "the server has not come to it"})
        if "row" not in entry:
            lines.append(f"{task.name} is not trained: {entry['failed']}")
            continue
        if "failed" in entry:
            lines.append(f"{task.name} keeps an earlier run's row: {entry['failed']}")
        backbone = entry["backbone"]
        lines.append(f"{task.name} learned {f'on the network of {backbone}' if backbone else 'alone'}")
        lines += [f"  {line}" for line in entry["refused"]]
    return lines


def traffic(messages: Mapping[str, Mapping[str, int]]) -> str:
    """The messages by kind, with the bytes of their contents as the server sent and received them."""
    rows = [
        (kind, *(f"{entry[name]:,}" for name in ("messages", "sent", "received")))
        for kind, entry in messages.items()
    ]
    return aligned(("message", "number", "bytes sent", "bytes received"), rows)


if __name__ == "__main__":
    errors.run(main)
