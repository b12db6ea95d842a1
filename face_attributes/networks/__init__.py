"""Networks: building, freezing, weight files, the device they run on."""
