"""What a run leaves for people to look at."""

from cutline.report.classes import Classified, write_class_report
from cutline.report.page import Example, write_report

__all__ = ["Classified", "Example", "write_class_report", "write_report"]
