"""What a transaction decides, as pure functions: from a view of a thread, or a run's state, to a change of it.

Nothing here reads or writes anything, or knows the time except from its arguments.
"""
