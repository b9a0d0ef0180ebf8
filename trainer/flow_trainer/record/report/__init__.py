"""`flow-grpo report`: runs as one HTML file, curves and pictures and what differs; no outside requests,
no script, no torch."""

from flow_trainer.record.report.page import summary_table, write_report
from flow_trainer.record.report.runs import read_metrics

__all__ = ["read_metrics", "summary_table", "write_report"]
