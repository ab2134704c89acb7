"""One supervisor and what it forks: who sits in which slot, who died of what, and who is told so."""
