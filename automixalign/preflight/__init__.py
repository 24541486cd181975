"""Before any work starts: check the configuration and its sources, show the data, estimate the cost.

It keeps no results: nothing that it prepares or trains outlives the command.
"""
