"""A cluster in memory, for tests of dapt and of launchers or gates that others write.

The product never imports it.
"""
