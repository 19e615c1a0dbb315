"""The version that stands in every file and message as part of its producer."""

PRODUCT_VERSION = "0.1.0"
