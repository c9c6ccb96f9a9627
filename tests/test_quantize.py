"""The main job: what comes out, what it depends on, and what it says to bad input."""
