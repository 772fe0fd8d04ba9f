"""One page of HTML that tells what a run came to, and one that puts several runs side by side."""

from detectkit.report.folder import is_run
from detectkit.report.several import compare_reports
from detectkit.report.single import summary, write_report

__all__ = ["compare_reports", "is_run", "summary", "write_report"]
