"""What a file of weights holds, and how latent attention of any convention becomes ours."""
