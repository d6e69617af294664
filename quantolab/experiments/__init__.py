"""The experiments that users call: what each asks for and tables; beside it what its child does.

`jobs` holds the records that pass between the two, `opening` what all of them begin with.
"""
