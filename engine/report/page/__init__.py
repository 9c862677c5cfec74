"""The report: one self-contained HTML page about a label store, for people who decide if its labels are good enough.

:mod:`.overview` reads the figures of every image, :mod:`.model_view` runs the model again on a sample, :mod:`.gallery`
chooses and encodes pictures, :mod:`.sections` turns figures into the data of the page, :mod:`.charts` draws SVG, and
:mod:`.render` fills the templates.
"""
