"""reconsup as compose runs it, on this machine without containers: PostgreSQL, a chain, supervisors. For who tries it.

`python -m tests.local up | receive-test | down`; make calls it as local-up-all, local-receive-test and local-down.
"""
