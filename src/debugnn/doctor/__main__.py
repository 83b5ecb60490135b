"""`python -m debugnn.doctor FINDINGS.json` prints a report that was saved as JSON."""

import argparse

from debugnn.doctor.report import Report
from debugnn.errors import one_line


def main() -> None:
    """Print the report; exit with code 1 and one line where the file does not hold one."""
    parser = argparse.ArgumentParser(prog="python -m debugnn.doctor", description=__doc__)
    parser.add_argument("file", metavar="FINDINGS.json", help="written from report.to_json()")
    parser.add_argument(
        "--details", action="store_true", help="all findings with their numbers, not only the first"
    )
    options = parser.parse_args()
    try:
        report = Report.load(options.file)
    except OSError as error:
        parser.exit(1, f"error: {options.file}: {error.strerror}\n")
    except (TypeError, ValueError, AttributeError) as error:
        parser.exit(1, f"error: {options.file}: this is no saved report: {one_line(error)}\n")
    print(report.details() if options.details else report)


if __name__ == "__main__":
    main()
