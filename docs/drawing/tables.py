"""Parts of the recorded tables, for pages that show only some of them."""

from drawing import records
from drawing.records import report

TASKS = {"tasks-summary": ("classifiers, NLL", "regressions, NLL")}
TASKS |= {"tasks-nll": ("NLL of classifiers", "NLL of regressions", "90% intervals' coverage")}


def pages() -> dict[str, str]:
    """The text of each file, by its name."""
    shown = {heading for headings in TASKS.values() for heading in headings}
    each = [heading for heading in records.headings("tasks") if heading not in shown]
    recorded = records.record("tasks")["tables"]
    return {
        name: "\n\n".join(report.tables(records.chosen(recorded, headings))) + "\n"
        for name, headings in (TASKS | {"tasks-each": tuple(each)}).items()
    } | {"tasks-about": report.markdown(records.record("tasks"), ())}
