"""The demo's pictures, drawn by the package itself, deterministic from a seed.

canvas.py signed distances and paint; colours.py; patterns.py, figures.py, views.py the classes;
pictures.py a picture with its captions; sections.py the image sets made of them.
"""
