"""dyndeploy."""
