"""From a folder of labelled images to a spec: what is there, what fits it, and the text that says so."""
