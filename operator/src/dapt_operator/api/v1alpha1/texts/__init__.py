"""Rules for texts of a spec, judged alike by Python and by the API server: addresses, names, quantities."""
