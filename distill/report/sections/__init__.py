"""The report's sections, one thing each: a table, its pictures, its sentences, as functions of the results.

Needs: distill.report.section and how numbers are written. Not here: their order (distill.report.contents), pages, files.
"""
