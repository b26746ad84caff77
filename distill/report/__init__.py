"""Results in, tables, figures and one page that opens offline out; `page.write_report` for every kind of command.

Needs: the dictionary that the stage `report` collects. What is shown is a list of sections (`contents.py`), one thing each.
Not here: reading a run's files, measuring.
"""
