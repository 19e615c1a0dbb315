"""Holds the product's version, which every file and message names as part of its producer."""

PRODUCT_VERSION = "0.1.0"
