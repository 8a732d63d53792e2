"""What training minimises: prediction loss and budget regularizer."""
