"""The report as one page: template, style and script beside this file, charts as SVG."""
