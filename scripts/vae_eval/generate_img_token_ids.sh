#!/bin/sh
# Encodes the images of all LLaVA sets below DATA_ROOT into CKPT/ids/NAME; the same command resumes.
#   bash scripts/vae_eval/generate_img_token_ids.sh CKPT [GPU[,GPU...]] [DATASET] [options of unicode.run.encode_images]
# GPU       which to use; all of them if left out or "", the CPU where there is none
# DATASET   llava_laion558k or llava_mix665k (both if left out), or another one below DATA_ROOT: imagenet, cc3m, ffhq, coco
# DATA_ROOT folder of the annotation files, where the image paths in them start (DATA_VAE.md; default: datasets/llava)
cd "$(dirname "$0")/../.." || exit 1
. scripts/launch.sh
if [ ! -e "${1:-}" ]; then
    echo "error: no tokenizer '${1:-}' below $PWD; give its folder: bash scripts/vae_eval/generate_img_token_ids.sh outputs/hqvae_shapes" >&2
    exit 2
fi
root=${DATA_ROOT:-datasets/llava} ckpt=$1 gpus='' dataset='' status=0 found=0
shift
case ${1---} in -*) ;; *) gpus=$1 && shift ;; esac
case ${1---} in -*) ;; *) dataset=$1 && shift ;; esac
if [ -n "$gpus" ]; then export CUDA_VISIBLE_DEVICES="$gpus"; fi

# encode NAME FILE_OR_FOLDER ARGS...: the store CKPT/ids/NAME, if that file or folder exists.
encode() {
    if [ ! -e "$2" ]; then echo "skipped $1: no $2" >&2 && return; fi
    found=1
    (name=$1 && shift 2 && launch unicode.run.encode_images --ckpt "$ckpt" --out "$ckpt/ids/$name" "$@") || status=$?
}

# llava NAME ANNOTATIONS: all images of an annotation file, train and val, or those of the lists NAME_train.txt and NAME_val.txt.
llava() {
    name=$1 annotations=$root/$2 && shift 2
    if [ -e "$annotations" ] || ! { [ -e "$root/${name}_train.txt" ] || [ -e "$root/${name}_val.txt" ]; }; then
        encode "$name" "$annotations" --images "$annotations" --root "$root" "$@"
    else
        for split in train val; do
            encode "${name}_$split" "$root/${name}_$split.txt" --images "$root/${name}_$split.txt" --root "$root" "$@"
        done
    fi
}

case $dataset in
    '' | llava_laion558k | llava_mix665k) ;;
    imagenet | cc3m | ffhq | coco)
        for split in train val; do
            encode "${dataset}_$split" "$root/$dataset" "name=$dataset" "root=$root/$dataset" "split=$split" "$@"
        done
        ;;
    *) echo "error: no data set '$dataset'; known: llava_laion558k llava_mix665k imagenet cc3m ffhq coco" >&2 && exit 2 ;;
esac
case $dataset in '' | llava_laion558k) llava llava_laion558k blip_laion_cc_sbu_558k.json "$@" ;; esac
case $dataset in '' | llava_mix665k) llava llava_mix665k llava_v1_5_mix665k.json "$@" ;; esac
if [ "$found" = 0 ]; then echo "error: nothing to encode; set DATA_ROOT to the folder of the data sets (now $root, from $PWD)" >&2 && exit 2; fi
exit "$status"
