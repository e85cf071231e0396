"""GM-DF: one deepfake detector meta-trained on several data sets."""
