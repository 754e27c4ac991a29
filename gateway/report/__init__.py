"""``meterctl report``: what a gateway found, read and holds, as one HTML file to hand over."""
