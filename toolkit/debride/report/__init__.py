"""What a run found, for machines (JSON), for people (text, pictures), and the folder that holds it all."""

from debride.report.chart import norms_chart
from debride.report.json import SCHEMA, Summary, from_json, to_json
from debride.report.pictures import trigger_picture
from debride.report.text import to_text
from debride.report.write import check_folder, write_report

__all__ = [
    "SCHEMA",
    "Summary",
    "check_folder",
    "from_json",
    "norms_chart",
    "to_json",
    "to_text",
    "trigger_picture",
    "write_report",
]
