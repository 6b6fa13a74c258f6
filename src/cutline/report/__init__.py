"""What a run leaves for people to look at."""

from cutline.report.page import Example, write_report

__all__ = ["Example", "write_report"]
