"""Results in, tables, figures and one page that opens offline out.

Needs: the dictionaries that the report stages collect. Not here: reading a run's files, measuring.
"""
