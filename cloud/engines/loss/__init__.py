"""Line loss: power flow, balance of an area, fitted technical loss, and who explains what is left."""
