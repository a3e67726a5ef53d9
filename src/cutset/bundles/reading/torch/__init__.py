"""Stage programs of torch (pt2): decoded as data, checked call by call, built without pickle."""
