"""The report of a run on one page: a classifier's, a detector's."""
