"""The one helper process of a host: what others may look at, and what is left of the dead."""
