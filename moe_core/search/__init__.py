"""Search over the posts of a mixture: by images, posts and hashtags, in the one embedding space."""
