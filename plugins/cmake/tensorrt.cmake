# SPDX-License-Identifier: Apache-2.0
#
# Finds the TensorRT headers (NvInferRuntime.h, 10.0 or newer) and CUDA's, which they include, and
# decides whether the TensorRT plugin is built. Nothing is linked: the plugin calls no function of
# TensorRT. Sets NQ_TENSORRT_HEADERS, the folders to include, and NQ_TENSORRT_ENABLED.

set(NQ_TENSORRT_ENABLED OFF)
set(NQ_TENSORRT_HEADERS "")
if(NOT NQ_TENSORRT STREQUAL "OFF")
  # JetPack's and Debian's places, a tarball's usual one, and where the Makefile puts them.
  find_path(TENSORRT_INCLUDE_DIR NvInferRuntime.h
            HINTS ENV TENSORRT_ROOT PATH_SUFFIXES include
            PATHS /usr/include/${CMAKE_CXX_LIBRARY_ARCHITECTURE} /usr/local/tensorrt/include
                  /opt/tensorrt/include
                  ${CMAKE_CURRENT_SOURCE_DIR}/../build/tensorrt-headers/kernel_lens/include/tensorrt)
  find_path(NQ_CUDA_HEADERS cuda_runtime_api.h
            HINTS ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES} ENV CUDA_HOME PATH_SUFFIXES include
            PATHS /usr/local/cuda/include /opt/cuda/include)
  if(TENSORRT_INCLUDE_DIR AND EXISTS ${TENSORRT_INCLUDE_DIR}/NvInferVersion.h AND NQ_CUDA_HEADERS)
    file(STRINGS ${TENSORRT_INCLUDE_DIR}/NvInferVersion.h NQ_TENSORRT_MAJOR
         REGEX "define (NV_TENSORRT_MAJOR|TRT_MAJOR_ENTERPRISE) +[0-9]+")
    string(REGEX MATCH "[0-9]+" NQ_TENSORRT_MAJOR "${NQ_TENSORRT_MAJOR}")
    if(NQ_TENSORRT_MAJOR AND NOT NQ_TENSORRT_MAJOR LESS 10)
      set(NQ_TENSORRT_HEADERS ${TENSORRT_INCLUDE_DIR} ${NQ_CUDA_HEADERS})
    endif()
  endif()
  if(NQ_TENSORRT_HEADERS AND NQ_CUDA_ENABLED)
    set(NQ_TENSORRT_ENABLED ON)
    message(STATUS "TensorRT plugin from the headers in ${TENSORRT_INCLUDE_DIR}")
  elseif(NQ_TENSORRT STREQUAL "ON")
    message(FATAL_ERROR "NQ_TENSORRT is ON, and the plugin needs the CUDA kernels (nvcc) and the "
                        "headers of TensorRT 10.0 or newer: -DTENSORRT_INCLUDE_DIR=FOLDER")
  endif()
endif()
