"""The self-contained report page."""

from d3still.reporting.html.page import report_html

__all__ = ["report_html"]
