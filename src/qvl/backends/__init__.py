"""What can be asked about pictures: our own engine (`native`), later servers and a fake, behind the same words."""
