"""What answers questions about images: our own engine (`native`), servers (`http`) and a fake, behind one class."""
