"""The colours of every picture: Okabe and Ito's palette, which colour-blind readers can tell apart."""

BLACK = "#000000"
BLUE = "#0072B2"
VERMILION = "#D55E00"
GREEN = "#009E73"
PURPLE = "#CC79A7"
ORANGE = "#E69F00"
SKY_BLUE = "#56B4E9"
LINES = (BLACK, BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY_BLUE)  # its yellow is too pale for a line

PALE_BLUE, PALE_YELLOW, PALE_VERMILION = "#CFE6F5", "#FCF3C6", "#F8DCC8"  # backgrounds
DARK_GREY, GREY, LIGHT_GREY = "#505050", "#767676", "#E0E0E0"  # notes, reference lines, grid
