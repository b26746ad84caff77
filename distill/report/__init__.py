"""Results in; tables, figures and one offline page out. `page.write_report` serves every kind of command.

Needs: the dictionary that the stage `report` collects. The content is a list of sections (`contents.py`).
Not here: reading a run's files, measuring.
"""
