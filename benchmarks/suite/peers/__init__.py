"""The straightforward way: what one would write first, which cases are measured against."""
