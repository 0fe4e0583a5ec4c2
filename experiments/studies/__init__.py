"""The study: which methods are compared, how they are trained and measured, and what comes of it."""
