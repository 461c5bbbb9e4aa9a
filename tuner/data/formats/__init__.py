"""A row of a data set → samples: one pure function a format. `tuner.data.formats.rows` chooses among them,
and says how to add one.
"""
